"""Concepts and datasets that several tests read."""

from pathlib import Path

from helpers import tiny

REFERENCE = {
    "instance_prompt": "a photo of sks girl", "class_prompt": "a photo of a girl",
    "instance_data_dir": "girl", "class_data_dir": "class",
}  # fmt: skip

# Settings of `run` that learn the concepts of a file in place of its own.
BY_FILE = dict.fromkeys(
    ("data__instance_prompt", "data__instance_data_dir", "data__class_prompt", "data__class_data_dir")
) | {"data__concepts_list": "concepts.json"}

PROMPTS_AND_CLASSES = """Classes

subject_name,class
red_girl,girl
blue_dog,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} with pink hair'.format(unique_token, class_token),
'a photo of a {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in a hat'.format(unique_token, class_token)
]
"""


def made_up_dataset(folder: Path) -> Path:
    """Two subjects in google/dreambooth's layout, and one whose images are not there."""
    call = "'a {0} {1} on a table'.format(unique_token, class_token)"
    lists = "\n".join(f"prompt_list = [\n{call},\n]" for _ in range(2))
    (folder / "mug").mkdir(parents=True)
    (folder / "owl").mkdir()
    classes = "subject_name,class\nmug,cup\nowl,owl\nabsent,dog"
    (folder / "prompts_and_classes.txt").write_text(f"Classes\n{classes}\nPrompts\n{lists}\n")
    for number, name in enumerate(("mug", "owl")):
        tiny.subject(folder / name, 3 + number)
    return folder
