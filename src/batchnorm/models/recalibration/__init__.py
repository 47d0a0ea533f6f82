"""What `recalibrate` is made of, from one layer's input to the whole run."""
