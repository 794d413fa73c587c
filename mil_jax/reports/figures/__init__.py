"""Figures: training curves, ROC curves, risk groups, scatter plots."""
