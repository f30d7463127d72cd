"""scikit-learn in joblib's workers (loky): forests, each grown in another process, and cross-validation."""

from cycles import digest, repeat
from joblib import Parallel, delayed
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score

X, Y = make_classification(n_samples=300, n_features=10, random_state=1)


def grow(seed: int) -> bytes:
    forest = RandomForestClassifier(n_estimators=8, random_state=seed).fit(X, Y)
    return bytes(forest.predict_proba(X).tobytes())


def cycle() -> str:
    grown = Parallel(n_jobs=3)(delayed(grow)(seed) for seed in range(6))
    scores = cross_val_score(RandomForestClassifier(n_estimators=5, random_state=3), X, Y, cv=3, n_jobs=3)
    return digest(grown, scores.tolist())


repeat(cycle)
