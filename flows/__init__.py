"""The loop (`flows.iris`), one iteration of it (`flows.iteration`), and evaluation alone (`flows.evaluation`)."""
