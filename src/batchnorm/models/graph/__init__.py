"""One reader of models: which module feeds which, from a trace, from a recorded run, or from the parts."""
