"""``erasebench_open``: concepts, their neighbours and seeded prompts as data, and the workshop that made them."""
