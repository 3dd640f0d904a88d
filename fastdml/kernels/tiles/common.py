"""What several tile losses share."""

LOG2E = 1.4426950408889634  # natural exponents become base 2
LN2 = 0.6931471805599453
