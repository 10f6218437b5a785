"""What ``lrpguard`` alone says."""

FIRST = """\
lrpguard notices, and repairs, adversarial inputs to a PyTorch image classifier.

To begin with:

  lrpguard demo         Attack digits, flag them, restore them: a tour. Downloads nothing.
  lrpguard doctor       Does lrpguard work here, and with your --model?
  lrpguard calibrate    Learn from your clean images what is usual; write a calibration.
  lrpguard check        Judge images with it: flag and restore.
  lrpguard serve        Put the guarded model behind HTTP; --demo needs no model.

lrpguard COMMAND --help shows the options of one, with an example; lrpguard --help lists all."""
"""What stands where no command is given: the five that one needs first."""
