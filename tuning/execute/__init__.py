"""How a study is carried out: Ray Tune around its trials, each on virtual workers or real ones; and single runs."""
