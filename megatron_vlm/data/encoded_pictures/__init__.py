"""What preprocessing does with a picture while it is a JPEG, PNG or WebP file: read its header, check its structure, strip
its metadata, shrink it, hash it, filter it.
"""
