"""What a Jupyter server loads: the extension, its REST API, the websockets, and what happens without a person."""
