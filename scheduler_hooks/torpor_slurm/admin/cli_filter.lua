-- SPDX-License-Identifier: BSD-3-Clause
--
-- A cli_filter.lua for a site that has none. A site that has one adds the two marked lines to it.

local torpor = dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "torpor.lua") -- marked

function slurm_cli_setup_defaults(options, early)
	return slurm.SUCCESS
end

function slurm_cli_pre_submit(options, offset)
	return torpor.cli_filter(options) -- marked
end

function slurm_cli_post_submit(offset, job, step)
	return slurm.SUCCESS
end

return slurm.SUCCESS
