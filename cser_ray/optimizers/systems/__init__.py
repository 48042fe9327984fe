"""The systems of other papers, each with more than the family's recursion: one file each."""
