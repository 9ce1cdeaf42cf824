"""Photos in, results out: what the command line, batch jobs and the service share.

A network comes from a `NetworkSource`, a `Question` says what is explained, photos become inputs (`photo_files`), a
`BatchExplainer` makes `PhotoResult`s of them, and `map_rows` writes these as rows of a table.
"""
