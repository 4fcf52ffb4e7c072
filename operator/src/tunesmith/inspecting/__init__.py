"""Looks at a job's model and data before any accelerator is held: sizes for the estimate, and errors within seconds.

Of a model only config.json and the headers of its safetensors files are read, from a volume, the Hub or S3. Inputs on
a claim are waited for, since another pod that was applied together with this one may write them.
"""
