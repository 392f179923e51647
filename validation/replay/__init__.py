"""Replay in real time: one YAML workload on a real vLLM by the clock on the wall, and in the simulator.

`plan` reads the config, `client` sends the requests, `engine` and `http` are what they are sent to,
`recording` is what comes out; `calibrate` fits the step time, `simulated` runs the simulator on the same
workload, `compare` measures the distance of the curves and `report` writes the folder.
"""
