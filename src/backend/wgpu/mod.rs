//! WGSL compute shaders on Vulkan, Metal and DX12.
