"""Every error lrpguard raises on purpose.

LrpGuardError
├── InputError (ValueError)            the images of a request cannot be used
│   ├── InputTypeError                 not a floating-point tensor
│   ├── InputShapeError                not [B, C, H, W], empty, wrong channels, too large
│   ├── InputRangeError                pixels outside [0, 1]
│   └── NonFiniteInputError            NaN or infinite pixels
├── ModelError                         the wrapped model cannot be used
│   ├── UnsupportedModelError          not an eager nn.Module on one device
│   ├── TrainingModeError              model in train mode
│   ├── ModelOutputError               output is not finite logits [B, K]
│   └── UnsupportedOperatorError       an operator has no LRP rule
├── ConfigurationError (ValueError)    an argument of ours is out of its range
├── CalibrationError                   the guard's calibration cannot be used
│   ├── NotCalibratedError             there is none
│   ├── CalibrationSizeError           too few clean images for the alpha asked
│   ├── CalibrationFileError           unreadable, altered or from a newer lrpguard
│   ├── CalibrationMismatchError       made for another model, precision or image size
│   └── SelfTestError                  the stored self-test is not reproduced
├── NonFiniteScoreError                a score is NaN or infinite
├── EvaluationError                    an evaluation would count what it must not
├── LoadingError                       a model or data specification cannot be loaded
│   └── ImageSizeError                 an image has, or would get, too many pixels
├── AuditError                         an audit trail is broken, or another's
└── MissingDependencyError             an optional extra is not installed

Each message says what was got, what was expected, and how to mend it.
"""


class LrpGuardError(Exception):
    """Base of every error lrpguard raises on purpose."""


class InputError(LrpGuardError, ValueError):
    """The images of a request cannot be used."""


class InputTypeError(InputError):
    """The images are not a floating-point tensor."""


class InputShapeError(InputError):
    """The images are not [B, C, H, W], are empty, or have the wrong channels or size."""


class InputRangeError(InputError):
    """Pixels lie outside [0, 1]."""


class NonFiniteInputError(InputError):
    """Pixels are NaN or infinite."""


class ModelError(LrpGuardError):
    """The wrapped model cannot be used."""


class UnsupportedModelError(ModelError):
    """The model is not an eager ``nn.Module`` on one device."""


class TrainingModeError(ModelError):
    """The model, or a part of it, is in train mode."""


class ModelOutputError(ModelError):
    """The model's output is not finite logits of shape [B, K]."""


class UnsupportedOperatorError(ModelError):
    """An operator on the relevance path has no LRP rule.

    Attributes:
        operator: Name of the operator, e.g. ``"torch.cosh"``.
        module: Dotted name of the module that called it (``""`` is the model itself).
    """

    def __init__(self, operator: str, module: str, detail: str) -> None:
        self.operator = operator
        self.module = module
        where = f"module '{module}'" if module else "the model's own forward"
        super().__init__(f"{operator} in {where}: {detail}")


class ConfigurationError(LrpGuardError, ValueError):
    """An argument is out of its range, or two arguments contradict each other."""


class CalibrationError(LrpGuardError):
    """The guard's calibration cannot be used."""


class NotCalibratedError(CalibrationError):
    """The guard has no calibration yet."""


class CalibrationSizeError(CalibrationError):
    """Too few clean images for the false-positive rate asked for."""


class CalibrationFileError(CalibrationError):
    """The calibration file is unreadable, altered, or from a newer lrpguard."""


class CalibrationMismatchError(CalibrationError):
    """The calibration was made for another model, precision or image size."""


class SelfTestError(CalibrationError):
    """A stored self-test cannot be read, or its score is not reproduced."""


class NonFiniteScoreError(LrpGuardError):
    """A score is NaN or infinite."""


class EvaluationError(LrpGuardError):
    """An evaluation would count what it must not: splits overlap, or an attack left its ball."""


class LoadingError(LrpGuardError):
    """A model or data specification cannot be loaded."""


class ImageSizeError(LoadingError):
    """An image has, or would get when it is brought to the model's size, too many pixels."""


class AuditError(LrpGuardError):
    """An audit trail is broken, was altered, or was written with another key."""


class MissingDependencyError(LrpGuardError, ImportError):
    """An optional extra is not installed."""


class LrpGuardWarning(UserWarning):
    """Something the caller should know, which does not make the answer wrong."""
