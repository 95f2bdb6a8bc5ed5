"""One Prefect task per stage: thin, without mathematics and without torch. `tasks.stage` holds what they share."""
