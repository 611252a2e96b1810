"""Replicas: R independent runs in lockstep, as one learner with a leading dimension R on every tensor."""
