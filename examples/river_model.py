"""A River model with its preprocessing, played by driftline: late labels, both libraries' metrics side by side."""

from river import datasets, linear_model, metrics, preprocessing

import driftline
from driftline.interop import river
from driftline.metrics import OnlineAccuracy

model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
stream = river.stream(datasets.Phishing(), delay=20)
learner = river.RiverLearner(model, classes=[False, True])
measured = [OnlineAccuracy(window=None), river.RiverMetric(metrics.F1(), labels=[False, True])]
for name, value in driftline.run(stream, learner, metrics=measured).results.items():
    print(f"{name} {value:.3f}")
