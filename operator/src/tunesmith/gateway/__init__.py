"""The gateway of a ModelDeployment: sends each request to a pod that serves its model, splits requests between versions
of an adapter, and lets requests wait while there is no pod.
"""
