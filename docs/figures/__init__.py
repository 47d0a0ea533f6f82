"""Every measured figure of the README and the pages, beside the file that it was read from."""
