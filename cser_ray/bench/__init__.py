"""`cser-ray bench`: what a step costs, measured on this machine; needs neither Ray nor pandas."""
