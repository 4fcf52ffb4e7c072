"""OpenAI's fine-tuning API over the FineTuneJobs of one namespace: `python -m tunesmith.openai_api`.

Every request acts with the Kubernetes token that came as its API key; the process has no rights of its own.
`rows`, `graders`, `requests` and `objects` are pure, `files` keeps uploads on a claim, `server` is the HTTP.
"""
