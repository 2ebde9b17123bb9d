"""The executor pool: jobs with weights over long-lived domains."""
