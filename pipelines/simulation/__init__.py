"""Simulation of runs without engines: the real scheduling over stand-in pools that only take time.

The stand-ins exported here are supported for tests, together with the fakes of `rlad.testing`. They are not in that
package because they implement protocols of `pipelines` and `actors`, which `rlad` may not import.
"""

from pipelines.simulation.stand_ins import DecodingSlots, InProcess, Server, StandInLearner, publication

__all__ = ["DecodingSlots", "InProcess", "Server", "StandInLearner", "publication"]
