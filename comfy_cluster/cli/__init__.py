"""The `comfy-cluster` command. `main.py` is its entry; nothing else of the project imports this."""
