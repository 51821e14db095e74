"""End of a run's own teacher when the run's driver has died without deleting it.

Serve keeps applications on a standing cluster after the job that deployed them. Ray ends the driver's actors with the
driver, so a replica that can no longer reach one of them deletes its application and releases its GPUs.
"""

from __future__ import annotations

import asyncio
import logging

from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayError

logger = logging.getLogger(__name__)

# Time between two checks. The application is deleted about this much later than the owner died.
CHECK_PERIOD_S = 5.0
# Pause before an owner that did not answer is asked again.
_CONFIRMATION_S = 0.5


async def delete_with_owner(owner: ActorHandle) -> None:
    """Wait until an actor has died, then delete the application of this replica.

    An actor that only does not answer, because its node or the network is slow, is asked again, and so is one that may
    be restarted: a call that was under way when its process died cannot tell.

    Args:
        owner: An actor of the run's driver.
    """
    app_name = serve.get_replica_context().app_name
    times_dead = 0
    while times_dead < 2:
        try:
            await asyncio.wait_for(owner.__ray_ready__.remote(), CHECK_PERIOD_S)
        except ActorDiedError:
            times_dead += 1
            await asyncio.sleep(_CONFIRMATION_S)
            continue
        except (RayError, TimeoutError):
            times_dead = 0
            await asyncio.sleep(_CONFIRMATION_S)
            continue
        times_dead = 0
        await asyncio.sleep(CHECK_PERIOD_S)
    logger.warning("teacher=%s state=deleted reason=the run's driver has died", app_name)
    await asyncio.to_thread(serve.delete, app_name, _blocking=False)
