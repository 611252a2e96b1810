"""A driftline learner as a classifier of River, in a pipeline, under River's own evaluation."""

import torch
from river import datasets, evaluate, metrics, preprocessing

import driftline
from driftline.interop.river import RiverClassifier
from driftline.learners import GradientLearner, ReservoirReplay


def make_learner(features, classes):
    model = driftline.models.mlp(features, classes, hidden=(32,))
    return GradientLearner(model, torch.optim.SGD(model.parameters(), lr=0.1), replay=ReservoirReplay(200))


model = preprocessing.StandardScaler() | RiverClassifier(make_learner)
print(evaluate.progressive_val_score(datasets.Phishing().take(600), model, metrics.Accuracy()))
