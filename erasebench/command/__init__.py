"""The command line: what is typed is understood or refused, what goes wrong is one line, a sweep is one thing."""
