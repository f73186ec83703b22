"""What also runs inside a sandbox: every file here is copied into it, as the package `inside`.

Hence only the standard library, and relative imports.
"""
