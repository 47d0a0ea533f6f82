"""Which statistics serve on unlabelled data from elsewhere, and the way back."""
