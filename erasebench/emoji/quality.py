"""``python -m erasebench.emoji.quality [FOLDER ...]``: the figures of the model cards; see ``training.quality``."""

from erasebench.emoji.training.quality import main

if __name__ == "__main__":
    main()
