"""What a study's runs say of its methods: chosen configurations, equal treatment, verdicts, and how they are written."""
