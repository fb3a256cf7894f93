"""tiny-vehicles: sixteen road vehicles, the artwork of four styles of emoji in changing paint and surroundings.

Splits share the artwork, not the pictures: what differs is place, size, paint, what stands around, and the weather.
"""

import numpy as np
from numpy.random import Generator
from PIL import Image

from clipfuse.tiny.canvas import SIDE, cloud, weather
from clipfuse.tiny.sprites import sprites, stamp, tinted
from clipfuse.tiny.task import TinyTask, drawings

NAME = "tiny-vehicles"
ART = {
    "ambulance": "ambulance",
    "articulated lorry": "articulated_lorry",
    "bus": "bus",
    "delivery truck": "truck",
    "fire engine": "fire_engine",
    "minibus": "minibus",
    "motorcycle": "racing_motorcycle",
    "pickup truck": "pickup_truck",
    "police car": "police_car",
    "racing car": "racing_car",
    "scooter": "motor_scooter",
    "sedan": "car",
    "sport utility vehicle": "blue_car",
    "taxi": "taxi",
    "tractor": "tractor",
    "trolleybus": "trolleybus",
}
"""Which artwork shows a class."""

STREET = ("deciduous_tree", "evergreen_tree", "traffic_light", "fuelpump", "house", "office", "construction")
"""What stands around."""


def draw(label: int, random: Generator) -> np.ndarray:
    """One vehicle in the street: (32, 32, 3) uint8."""
    art = sprites()
    ground = Image.fromarray(cloud(random)).convert("RGBA")
    for _ in range(random.integers(0, 3)):
        place = (random.uniform(0, SIDE), random.uniform(4, SIDE))
        clutter(ground, random, place, random.uniform(8, 16))
    shown = art[tuple(ART.values())[label]]
    painted = tinted(shown[random.integers(len(shown))], random, 0.3)
    centre = (SIDE / 2 + random.uniform(-5, 5), SIDE / 2 + random.uniform(-4, 4))
    stamp(ground, painted, random, centre, random.uniform(17, 29), 0.25)
    if random.random() < 0.35:
        side = random.choice([2, SIDE - 2])
        clutter(ground, random, (side + random.uniform(-2, 4), random.uniform(16, SIDE)), random.uniform(8, 15))
    return weather(np.asarray(ground.convert("RGB")), random, blur=1.0, light=(0.6, 1.15), grain=9)


def clutter(ground: Image.Image, random: Generator, centre: tuple[float, float], size: float) -> None:
    """Put something that stands in streets onto the ground, in place."""
    thing = sprites()[STREET[random.integers(len(STREET))]]
    stamp(ground, tinted(thing[random.integers(len(thing))], random, 0.2), random, centre, size, 0.1)


TASK = TinyTask(
    name=NAME,
    classes=tuple(ART),
    templates=("a photo of a {c}.", "a {c} in the street."),
    examples=drawings(NAME, len(ART), draw),
    licence="CC-BY 4.0 (Twemoji), Apache-2.0 (Noto Emoji), MIT (Fluent Emoji); composed by clipfuse",
)
