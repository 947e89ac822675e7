"""Training of the embedded model's second edition, see ``docs/decisions/0005``; ``train --edition 2`` runs it."""
