"""What the tests share. A package, because another one of this name would win over a folder."""
