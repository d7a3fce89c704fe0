"""A level of BabyAI's kind in which a model that does not listen fails: two balls of two colours, and one is asked for.

`minigrid:examples.robot.rooms:GoToOneOfTwo-v0`. The room is the smallest that BabyAI has, 3 x 3 tiles within its
walls, and the agent sees 5 x 5 tiles: all of the room that lies before it. Its expert is BabyAI's bot. Of MiniGrid's
colours grey is left out: walls are grey, and vocabularies of tiny models spell it nearly as green.
"""

import gymnasium
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.babyai.core.verifier import GoToInstr, ObjDesc

COLOURS = ("blue", "green", "purple", "red", "yellow")


class GoToOneOfTwo(RoomGridLevel):
    """Go to one of two balls, told which by its colour."""

    def __init__(self, **arguments: object) -> None:
        super().__init__(num_rows=1, num_cols=1, room_size=5, agent_view_size=5, **arguments)

    def gen_mission(self) -> None:
        self.place_agent()
        asked, other = self._rand_subset(COLOURS, 2)
        for colour in (asked, other):
            self.add_object(0, 0, "ball", colour)
        self.check_objs_reachable()
        self.instrs = GoToInstr(ObjDesc("ball", asked))


gymnasium.register("GoToOneOfTwo-v0", entry_point=GoToOneOfTwo)
