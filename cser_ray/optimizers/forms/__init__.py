"""Forms of the recursion in `PartialReset`: each is it at some of its points, with less memory or fewer passes."""
