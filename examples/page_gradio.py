"""A page on which images are dropped to be classified: `pip install acclimate gradio`.

ACCLIMATE_RUN=runs/a python page_gradio.py
"""

import os

import gradio as gr
from PIL import Image

import acclimate

model = acclimate.load(os.environ.get("ACCLIMATE_RUN", "runs/a"))


def classify(image: Image.Image) -> dict[str, float]:
    """The probability of each class."""
    return dict(zip(model.spec.classes, model.predict(image).probabilities[0].tolist()))


page = gr.Interface(classify, gr.Image(type="pil"), gr.Label(num_top_classes=3), title="Which class?")

if __name__ == "__main__":
    page.launch()
