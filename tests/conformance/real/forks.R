# R: linear algebra, regressions, random numbers from a seed, and forked workers of the package parallel.
library(parallel)
here <- Sys.getenv("CONFORM_DIR")

work <- function(seed) {
  set.seed(seed)
  x <- matrix(rnorm(20000), ncol = 10)
  y <- x %*% 1:10 + rnorm(2000)
  sum(coef(lm(y ~ x))) + sum(sort(runif(20000))[1:100])
}

while (!file.exists(file.path(here, "enough"))) {
  sums <- unlist(mclapply(1:6, work, mc.cores = 3))
  whole <- crossprod(matrix((1:40000) %% 97, 200))
  cat(sprintf("%.6f %.0f\n", sum(sums), sum(whole)), file = file.path(here, "lines"), append = TRUE)
}
