"""scikit-learn's own tests of LogisticRegression, run with FastLogisticRegression in its place.

Tests and parameters that need a different penalty, callbacks or attributes of LogisticRegressionCV are left out. Tests
that take a container for sparse data get `np.array`. `solver` is ignored.
"""

import inspect

import numpy as np
import pytest
import sklearn

from probe.probes.solvers.estimator import FastLogisticRegression

theirs = pytest.importorskip("sklearn.linear_model.tests.test_logistic")

# The names and parameters are from scikit-learn 1.9.
pytestmark = [
    pytest.mark.skipif(not sklearn.__version__.startswith("1.9."), reason="lists the tests of 1.9"),
    # scikit-learn's module has this filter: LogisticRegressionCV warns of its own parameters.
    pytest.mark.filterwarnings("ignore:The default value for l1_ratios.*:FutureWarning"),
]

SEED = 42  # scikit-learn's own default
TESTS = [
    ("test_predict_2_classes", {"csr_container": np.array}),
    ("test_predict_3_classes", {"csr_container": np.array}),
    ("test_logistic_glmnet", {"solver": "lbfgs"}),
    ("test_sparsify", {"coo_container": np.array}),
    ("test_inconsistent_input", {}),
    ("test_write_parameters", {}),
    ("test_nan", {}),
    ("test_multinomial_logistic_regression_string_inputs", {}),
    ("test_logistic_regression_sample_weights", {"problem": "single", "solver": "lbfgs"}),
    ("test_logistic_regression_solver_class_weights", {"solver": "lbfgs"}),
    ("test_logistic_regression_class_weights", {"csr_container": np.array}),
    ("test_logreg_predict_proba_multinomial", {}),
    *(
        ("test_max_iter", {"max_iter": n, "solver": "lbfgs", "message": "lbfgs failed to converge"})
        for n in range(1, 5)
    ),
    *(
        ("test_warm_start", {"solver": "lbfgs", "warm_start": warm_start, "fit_intercept": fit_intercept})
        for warm_start in (True, False)
        for fit_intercept in (True, False)
    ),
    *(
        ("test_dtype_match", {"solver": "lbfgs", "fit_intercept": fit_intercept, "csr_container": np.array})
        for fit_intercept in (True, False)
    ),
    ("test_warm_start_converge_LR", {}),
    ("test_c_inf_no_warning", {"solver": "lbfgs"}),
    *(
        ("test_multinomial_identifiability_on_iris", {"solver": "lbfgs", "fit_intercept": fit_intercept})
        for fit_intercept in (True, False)
    ),
    *(
        ("test_sample_weight_not_modified", {"class_weight": class_weight})
        for class_weight in ({0: 1.0, 1: 10.0, 2: 1.0}, "balanced")
    ),
    ("test_zero_max_iter", {"solver": "newton-cholesky"}),  # this test is stricter than with lbfgs
]


def _make_fast(*, solver="lbfgs", **parameters):
    return FastLogisticRegression(**parameters)


@pytest.mark.parametrize(("name", "parameters"), TESTS, ids=[name for name, _ in TESTS])
def test_scikit_learns_test_passes(name, parameters, monkeypatch):
    monkeypatch.setattr(theirs, "LogisticRegression", _make_fast)
    test = getattr(theirs, name)
    if "global_random_seed" in inspect.signature(test).parameters:
        parameters = {**parameters, "global_random_seed": SEED}
    test(**parameters)
