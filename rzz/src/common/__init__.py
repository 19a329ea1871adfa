"""What every package needs and none is about: settings, devices, files, logs, processes, command line, text."""
