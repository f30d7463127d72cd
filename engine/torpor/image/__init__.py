"""The image of a process tree: its schema (image.proto) and the code that protoc makes of it."""
