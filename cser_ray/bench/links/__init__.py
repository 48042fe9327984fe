"""What a step costs on a shaped link: ours and torch's own, each measured in turns with steps that send nothing."""
