"""tiny-scenes: sixteen places, each shown by three or four things that are found there (the artwork of emoji).

One picture in four also holds a thing from elsewhere, so that no single thing decides. Splits share the artwork, not
the pictures. The ground is any colour: it says nothing about the place.
"""

import numpy as np
from numpy.random import Generator
from PIL import Image

from clipfuse.tiny.canvas import cloud, weather
from clipfuse.tiny.sprites import sprites, stamp, tinted
from clipfuse.tiny.task import TinyTask, drawings

NAME = "tiny-scenes"
PLACES = {
    "bakery": "bread croissant cake cupcake pretzel doughnut pie",
    "bathroom": "toilet bathtub shower soap toothbrush roll_of_paper lotion_bottle",
    "beach": "umbrella_on_ground palm_tree shell crab bikini coconut tropical_drink",
    "bedroom": "bed teddy_bear couch_and_lamp alarm_clock candle window door",
    "classroom": "books pencil2 straight_ruler triangular_ruler microscope abacus school_satchel",
    "coral reef": "tropical_fish octopus turtle dolphin coral jellyfish shark",
    "desert": "cactus desert dromedary_camel scorpion lizard snake rock",
    "farm": "cow2 pig2 rooster sheep ear_of_rice racehorse corn",
    "forest": "evergreen_tree deciduous_tree mushroom deer bear owl hedgehog",
    "garden": "tulip sunflower rose potted_plant butterfly bee ladybug",
    "hospital": "hospital syringe pill stethoscope adhesive_bandage thermometer drop_of_blood",
    "kitchen": "fried_egg hocho teapot salt shallow_pan_of_food knife_fork_plate bowl_with_spoon",
    "marina": "ship anchor boat ferry ring_buoy speedboat canoe",
    "office": "desktop_computer printer file_cabinet keyboard paperclip telephone_receiver briefcase",
    "playground": "playground_slide kite balloon soccer yo-yo carousel_horse ferris_wheel",
    "ski slope": "ski snowflake snowman snow_capped_mountain sled gloves ice_skate",
}
"""What is found where."""

THINGS = [place.split() for place in PLACES.values()]
CORNERS = np.array([(9.0, 9.0), (23.0, 9.0), (9.0, 23.0), (23.0, 23.0)])


def draw(label: int, random: Generator) -> np.ndarray:
    """One place: (32, 32, 3) uint8."""
    art = sprites()
    ground = Image.fromarray(cloud(random)).convert("RGBA")
    things = list(random.choice(THINGS[label], int(random.integers(3, 5)), replace=False))
    if random.random() < 0.25:
        stranger = THINGS[(label + int(random.integers(1, len(THINGS)))) % len(THINGS)]
        things[-1] = random.choice(stranger)
    for thing, (x, y) in zip(things, random.permutation(CORNERS), strict=False):
        shown = art[str(thing)]
        piece = tinted(shown[random.integers(len(shown))], random, 0.2)
        centre = (x + random.uniform(-3, 3), y + random.uniform(-3, 3))
        stamp(ground, piece, random, centre, random.uniform(13, 19), 0.3)
    return weather(np.asarray(ground.convert("RGB")), random, blur=0.7, light=(0.6, 1.15), grain=9)


TASK = TinyTask(
    name=NAME,
    classes=tuple(PLACES),
    templates=("a photo of a {c}.",),
    examples=drawings(NAME, len(PLACES), draw),
    licence="CC-BY 4.0 (Twemoji), Apache-2.0 (Noto Emoji), MIT (Fluent Emoji); composed by clipfuse",
)
