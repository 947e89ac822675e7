"""Who does the work of a run: this process, or workers on one machine or many that fill the same store."""
