"""`make pictures`: the pictures of the documents, taken of a live run.

`scene` is what happens, `prometheus` records it, `panels` asks for what the dashboard shows, `shots` takes pictures.
"""
