"""The abstract interpreter: `Program(project, Interpreter).run()` are the events that the rules read."""
