"""An endpoint that classifies an image: `pip install acclimate fastapi uvicorn python-multipart`.

ACCLIMATE_RUN=runs/a uvicorn serve_fastapi:app
curl -F file=@one.jpg localhost:8000/predict
"""

import os

from fastapi import FastAPI, HTTPException, UploadFile

import acclimate

app = FastAPI()
model = acclimate.load(os.environ.get("ACCLIMATE_RUN", "runs/a"))


@app.post("/predict")
def predict(file: UploadFile) -> dict[str, object]:
    try:
        found = model.predict(file.file.read(20_000_000))  # bytes of an image, decoded as fit decodes them
    except acclimate.DataError as error:
        raise HTTPException(422, str(error)) from error
    probabilities = dict(zip(model.spec.classes, found.probabilities[0].tolist()))
    return {"predicted": found.predicted[0], "probabilities": probabilities}
