"""The command line: `qlab doctor | train | quantize | bench | detect`, a file each; ``main`` is their frame."""
