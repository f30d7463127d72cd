% Octave: linear algebra, a differential equation, transforms, random numbers from a seed, and a filter on two pipes.
1;

function derivative = oscillator (x, t)
  derivative = [x(2); (1 - x(1)^2) * x(2) - x(1)];
end

here = getenv ("CONFORM_DIR");
[to, from] = popen2 ("cat");

while (! exist (fullfile (here, "enough"), "file"))
  rand ("twister", 4711);
  noise = rand (300);
  values = sort (abs (eig (noise + noise')));
  path = lsode (@oscillator, [2; 0], linspace (0, 20, 400));
  spectrum = abs (fft (path(:, 1)));
  words = cellfun (@(k) sprintf ("%d", k^2), num2cell (1:2000), "UniformOutput", false);
  fprintf (to, "%s\n", strjoin (words, ","));
  fflush (to);
  line = "";
  do % the pipe does not block: it gives what there is
    piece = fgets (from);
    if (ischar (piece))
      line = [line, piece];
    else
      pause (0.001);
      fclear (from);
    end
  until (! isempty (line) && line(end) == "\n")
  told = numel (strsplit (line, ","));
  lines = fopen (fullfile (here, "lines"), "a");
  fprintf (lines, "%.6f %.6f %.6f %d %s\n", values(end), path(end, 1), max (spectrum), told, hash ("md5", line));
  fclose (lines);
end
fclose (to);
fclose (from);
